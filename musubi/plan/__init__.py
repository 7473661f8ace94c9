"""What a command will need: memory and seconds of each phase, and settings that fit.

Read `run.py`; the numbers come from `musubi.estimate.step`.
"""
