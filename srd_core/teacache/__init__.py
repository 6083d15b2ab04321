"""TeaCache (arXiv 2411.19108) for any MODEL.

host: the MODEL; run: a run of it; plan: which steps are reused; blocks: what stands in the blocks' place; wan,
cogvideox: the families.
"""
