"""Gradient arena and orthogonal projection at the speed of memory. Needs torch only; imports nothing by itself."""
