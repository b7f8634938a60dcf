"""What scripts are composed of: each part joins models, clips and the experiment.

Scripts import it, and nothing else does; no wheel and no checkpoint carries it.
"""
