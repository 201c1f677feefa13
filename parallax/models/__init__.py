"""The models: what is computed. They name logical axes and know no mesh axis."""
