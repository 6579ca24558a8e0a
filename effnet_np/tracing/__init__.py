"""Every activation of a forward pass by name, in memory and in files."""
