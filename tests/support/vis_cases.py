"""Clouds that the tests of the viewer share, and a look into what a page holds."""

import base64
import json
import re

import numpy as np

CORNERS = np.array([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]], dtype=np.float32)
HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">&\'\u2028'


def cloud(num_points=500, seed=0):
    """Points on a sphere, and three labels by height: (N, 3) float32, (N,) int64."""
    points = np.random.default_rng(seed).normal(size=(num_points, 3))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return points, np.digitize(points[:, 1], [-0.3, 0.3])


def page_data(text):
    """Read the description of a page back."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def page_buffer(text, number, dtype):
    """Read one of its arrays back."""
    content = re.search(rf'id="buffer{number}">(.*?)</script>', text, re.S)[1]
    return np.frombuffer(base64.b64decode(content), dtype=dtype)
