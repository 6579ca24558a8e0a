"""The stories of the kernels, runnable: every version of the matrix product and of the depthwise convolution, from loops to
what is used. `python -m effnet_np.kernels.versions` checks each against the first, and measures it. Nothing else needs this."""
