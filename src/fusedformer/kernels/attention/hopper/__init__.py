"""Attention for Hopper in Gluon: TMA, asynchronous matrix products, and warps that each do one part of the work."""
