"""What nftguard costs, each figure against a baseline that is measured in the same run: `python -m bench`, as root.

Everything happens in network namespaces that the run makes for itself; the machine's own ruleset is never touched.
"""
