"""The maths of rectified flow: times, mixing, targets, schedules, solvers. Pure functions.

`t` is the noise level everywhere: 0 is clean, 1 is noise, and x_t = (1 - t) x0 + t noise.
"""
