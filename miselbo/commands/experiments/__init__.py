"""Experiments of several runs: each is a function of the configuration, named by the node ``study`` of its yaml."""
