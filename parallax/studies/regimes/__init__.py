"""Where layer-wise deployment wins: the grid, its record, conclusions and page."""
