"""Segments a preprocessed image with an exported network, without PyTorch and nnU-Net: NumPy and onnxruntime.

    python examples/sliding_window_onnx.py NETWORK.onnx IMAGE.npy LABELS.npy

`nnunet_ext export MODEL --format onnx -o NETWORK.onnx` writes the network and NETWORK.onnx.json, which is read too.
IMAGE.npy is the image as nnU-Net preprocesses it, (channels, *size): axes in the order, voxels of the spacing and
intensities normalised as NETWORK.onnx.json says. LABELS.npy gets the labels of its voxels, (*size).
"""

import json
import sys
from itertools import product
from math import ceil

import numpy as np
import onnxruntime

STEP = 0.5  # of the sliding window, as a fraction of the patch


def starts(size, patch):
    """First voxels of the tiles along an axis: evenly spread, and at most STEP of a patch apart."""
    number = ceil((size - patch) / max(1, STEP * patch)) + 1
    return [round(i * (size - patch) / max(1, number - 1)) for i in range(number)]


def gaussian(patch):
    """Weights of a tile's voxels: a Gaussian with a standard deviation of an eighth of the patch, 10 at its centre."""
    axes = [np.exp(-0.5 * ((np.arange(p) - p // 2) / (p / 8)) ** 2) for p in patch]
    weights = 10 * np.prod(np.meshgrid(*axes, indexing="ij"), axis=0)
    return np.maximum(weights, 6e-8).astype(np.float32)  # the smallest number of nnU-Net's half precision


def predict(session, described, image):
    """Logits (classes, *size) of an image (channels, *size)."""
    tile_size = described["patch_size"]
    patch = [1] * (image.ndim - 1 - len(tile_size)) + tile_size  # a network in 2D reads slices along the first axis
    missing = [max(0, p - size) for p, size in zip(patch, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in missing)])
    weights = gaussian(patch)
    total = np.zeros((described["num_classes"], *padded.shape[1:]), np.float32)
    weight = np.zeros(padded.shape[1:], np.float32)
    axes = [starts(size, p) for size, p in zip(padded.shape[1:], patch, strict=True)]
    for corner in product(*axes):
        place = tuple(slice(at, at + p) for at, p in zip(corner, patch, strict=True))
        tile = padded[(slice(None), *place)].reshape(1, -1, *tile_size).astype(np.float32)
        (logits,) = session.run([described["output"]["name"]], {described["input"]["name"]: tile})
        total[(slice(None), *place)] += logits.reshape(-1, *patch) * weights
        weight[place] += weights
    kept = [slice(m // 2, m // 2 + size) for m, size in zip(missing, image.shape[1:], strict=True)]
    return (total / weight)[(slice(None), *kept)]


def labels_of(logits, described):
    """Labels (*size): of the largest logit, or of the regions in their order, later ones above earlier ones."""
    if not described["regions"]:
        return logits.argmax(0).astype(np.uint8)
    labels = np.zeros(logits.shape[1:], np.uint8)
    for mask, label in zip(logits > 0, described["regions_class_order"], strict=True):
        labels[mask] = label
    return labels


if __name__ == "__main__":
    network, image_file, labels_file = sys.argv[1:]
    with open(f"{network}.json", encoding="utf-8") as file:
        description = json.load(file)
    runtime = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    np.save(labels_file, labels_of(predict(runtime, description, np.load(image_file)), description))
