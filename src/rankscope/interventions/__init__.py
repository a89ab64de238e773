"""Edits trained updates and evaluates them again: is the drift of the stable rank the cause of a
loss, or a marker?"""
