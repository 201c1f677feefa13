"""Models: what is computed. They declare logical axes and know no mesh axis."""
