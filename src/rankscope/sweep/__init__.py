"""Who runs it: workers on this machine or on Ray, what they read, and how far they have come."""
