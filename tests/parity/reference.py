"""Values of every interpolator and divergence in float64, by the formulas of docs/method.md.

Independent of the package: plain numpy, token by token, the formulas as written down. Run it to
write `values.json` anew:

    python tests/parity/reference.py
"""

import json
import math
from pathlib import Path

import numpy as np

VALUES = Path(__file__).parent / "values.json"
B, T, D, H = 2, 3, 5, 2
ALPHAS = (0.0, 0.2, 0.5, 0.9, 1.0)


def inputs() -> dict[str, np.ndarray]:
    """Fixed inputs; one token has equal branches, one has parallel ones, one nearly opposite."""
    draw = np.random.default_rng(20250118)
    x, p = draw.normal(size=(2, B, T, D))
    e = p + 0.3 * draw.normal(size=(B, T, D))
    e[0, 1] = p[0, 1]
    e[1, 0] = 1.7 * p[1, 0]
    e[1, 2] = -0.9 * p[1, 2] + 0.2 * draw.normal(size=D)
    maps = np.exp(draw.normal(size=(2, B, H, T, T))) * np.tril(np.ones((T, T)))
    maps /= maps.sum(-1, keepdims=True)
    return {
        "x": x,
        "pretrained": p,
        "expanded": e,
        "dlerp_weight": draw.normal(size=2 * D),
        "dlerpin_weight": draw.normal(size=D),
        "moe_weight": draw.normal(size=(2, D)),
        "bias": np.array(0.3),
        "moe_bias": np.array([0.1, -0.2]),
        "projection": np.eye(D) + 0.1 * draw.normal(size=(D, D)),
        "maps_pretrained": maps[0],
        "maps_expanded": maps[1],
    }


def sigma(a: float) -> float:
    """The logistic function."""
    return 1 / (1 + math.exp(-a))


def cos(p: np.ndarray, e: np.ndarray) -> float:
    """The cosine of the angle between two vectors."""
    return float(p @ e / math.sqrt((p @ p) * (e @ e)))


def lerp(p: np.ndarray, e: np.ndarray, alpha: float) -> np.ndarray:
    """(1 - alpha) p + alpha e."""
    return (1 - alpha) * p + alpha * e


def slerp(p: np.ndarray, e: np.ndarray, alpha: float) -> np.ndarray:
    """sin((1-alpha) theta)/sin(theta) p + sin(alpha theta)/sin(theta) e; lerp where theta is 0."""
    theta = math.acos(min(1.0, max(-1.0, cos(p, e))))
    if theta < 1e-6:
        return lerp(p, e, alpha)
    return (math.sin((1 - alpha) * theta) * p + math.sin(alpha * theta) * e) / math.sin(theta)


def gated(data: dict[str, np.ndarray], name: str, token: tuple[int, int]) -> tuple[float, list]:
    """alpha_t and the output of a token gate."""
    x, p, e = (data[key][token] for key in ("x", "pretrained", "expanded"))
    if name == "dlerp":
        alpha = sigma(data["dlerp_weight"] @ np.concatenate([p, e]) + data["bias"])
    elif name == "dlerpin":
        alpha = sigma(data["dlerpin_weight"] @ x + data["bias"])
    else:  # moe: the expert with the greater score gives the output
        scores = data["moe_weight"] @ x + data["moe_bias"]
        alpha = float(scores[1] >= scores[0])
    return alpha, lerp(p, e, alpha).tolist()


def divergences(data: dict[str, np.ndarray], token: tuple[int, int]) -> dict[str, float]:
    """d(p, e) of one token by every measure."""
    x, p, e = (data[key][token] for key in ("x", "pretrained", "expanded"))
    distance = max(0.0, 1 - cos(p, e))
    smooth = 0.5 * distance**2 if distance < 1 else distance - 0.5
    b, t = token
    divergence = 0.0
    for head in range(H):
        for key in range(t + 1):
            ours, theirs = (
                data["maps_expanded"][b, head, t, key],
                data["maps_pretrained"][b, head, t, key],
            )
            divergence += ours * (math.log(ours) - math.log(theirs)) / H
    return {
        "mse": float(np.mean((e - p) ** 2)),
        "nmse": float(((e - p) @ (e - p)) / ((p - x) @ (p - x))),
        "cosine": smooth,
        "dot": 0.5 * smooth + 0.5 * (math.sqrt(p @ p) - math.sqrt(e @ e)) ** 2,
        "attention": divergence,
    }


def values() -> dict:
    """All values, as JSON holds them."""
    data = inputs()
    tokens = [(b, t) for b in range(B) for t in range(T)]
    p, e, A = data["pretrained"], data["expanded"], data["projection"]
    constant = {
        "lerp": [[lerp(p[i], e[i], alpha).tolist() for i in tokens] for alpha in ALPHAS],
        "slerp": [[slerp(p[i], e[i], alpha).tolist() for i in tokens] for alpha in ALPHAS],
        "prog": [[lerp(A @ p[i], e[i], alpha).tolist() for i in tokens] for alpha in ALPHAS],
        "proj": [[lerp(p[i], e[i], alpha).tolist() for i in tokens] for alpha in ALPHAS],
    }
    gates = {
        name: dict(
            zip(
                ("alpha", "out"),
                zip(*(gated(data, name, i) for i in tokens), strict=True),
                strict=True,
            )
        )
        for name in ("dlerp", "dlerpin", "moe")
    }
    per_token = [divergences(data, i) for i in tokens]
    return {
        "inputs": {name: array.tolist() for name, array in data.items()},
        "alphas": ALPHAS,
        "constant": constant,
        "gates": gates,
        "proj_target": [(A @ p[i]).tolist() for i in tokens],
        "divergences": {name: [d[name] for d in per_token] for name in per_token[0]},
    }


if __name__ == "__main__":
    VALUES.write_text(json.dumps(values(), indent=1) + "\n")
    print(f"wrote {VALUES}")
