"""Deterministic, well-conditioned parameters for an MSINN checkpoint, from the parameter names alone."""

import zlib

import numpy as np


def fill(name: str, shape, anchor_num: int) -> np.ndarray:
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    z = rng.standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "inited":
        return np.ones(shape, np.uint8)
    if name in ("gain", "inv_gain", "scale_gain"):
        step = np.exp(np.linspace(np.log(3.0), np.log(60.0), anchor_num)).reshape(-1, 1, 1, 1)
        base = {"gain": step, "inv_gain": 1.0 / step, "scale_gain": step}[name]
        return (base * np.exp(0.1 * z)).astype(np.float32)
    if name == "initial_scale":
        return (1.0 + 0.2 * np.abs(z)).astype(np.float32)
    if ".permute.weight" in name:
        return (np.eye(shape[0]) + 0.01 * z).astype(np.float32)
    if ".block.1.conv." in name or name.startswith("post_net.conv2."):
        return (z * (0.05 / np.sqrt(max(1, int(np.prod(shape[1:]))))) if leaf == "weight" else 0.02 * z).astype(np.float32)
    if name.startswith("entropy_parameters") and name.endswith("4.bias"):
        half = np.arange(shape[0]) < shape[0] // 2  # first half: scales, second half: means
        return (np.where(half, 0.4, 0.0) + 0.05 * z).astype(np.float32)
    if name.startswith("entropy_parameters") and name.endswith("4.weight"):
        return (z * (0.1 / np.sqrt(shape[1]))).astype(np.float32)
    if leaf in ("logs",):
        return (0.1 * z).astype(np.float32)
    if leaf == "bias":
        return (0.05 * z).astype(np.float32)
    fan_in = int(np.prod(shape[1:])) or 1
    return (z * (0.8 / np.sqrt(fan_in))).astype(np.float32)
