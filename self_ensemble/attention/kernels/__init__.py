"""Fused tokens' attention on GPUs: what `fusion.split_attention` computes, in Triton.

`launch.fuse` is the way in. It needs Triton, which comes with torch for GPUs: import it only there.

    prefix.py   all rows towards a prefix that they share
    mean.py     a row's partitions, each softmax by itself, weighted
    joint.py    a row's keys under one softmax
    merge.py    a row's parts, where several programs had its segments
    shared.py   what mean and joint begin and end with
    tiles.py    tiles of scores and values, online softmaxes
    launch.py   sizes of tiles, and the calls
"""
