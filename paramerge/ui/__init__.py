"""The window, ``paramerge ui``: a local page on the plans of the other rooms."""
