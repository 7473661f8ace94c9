"""`musubi bench`: seconds and memory of one step on a full-size network of random weights.

Speed and memory do not depend on what the weights are, so no file is needed to know whether a
model fits a card, and how fast it is there. Read `run.py`.
"""
