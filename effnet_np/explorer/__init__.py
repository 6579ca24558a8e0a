"""The explorer: a page in the browser that shows the network at work, and how each of its numbers was made."""
