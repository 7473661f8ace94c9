"""What a command will need before it runs: memory and seconds of each phase, and settings that fit.

Read `run.py`; the numbers come from `musubi.estimate.step`.
"""
