"""Looking inside: what differs and why, what it costs, where in a picture the evidence lies."""
