"""The study of where layer-wise deployment wins: its grid, record, conclusions and page."""
