"""Trained updates, edited and evaluated again: is a drift of the stable rank the cause of a
loss, or its marker?"""
