"""Measuring tools: this server beside others, in one run, with fio's nbd engine.

Only the standard library is needed; matplotlib, where installed, draws the plots.
"""
