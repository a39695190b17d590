"""Forty analogies "a is to b" of eight relations, five each.

The paper shows such phrases in a projector and does not list them; these are our own.
"""

__all__ = ["RELATIONS", "phrases"]

RELATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "man and woman": (
        ("king", "queen"),
        ("father", "mother"),
        ("brother", "sister"),
        ("uncle", "aunt"),
        ("boy", "girl"),
    ),
    "country and capital": (
        ("France", "Paris"),
        ("Japan", "Tokyo"),
        ("Italy", "Rome"),
        ("Egypt", "Cairo"),
        ("Spain", "Madrid"),
    ),
    "opposites": (
        ("hot", "cold"),
        ("big", "small"),
        ("light", "dark"),
        ("happy", "sad"),
        ("early", "late"),
    ),
    "present and past": (
        ("walk", "walked"),
        ("see", "saw"),
        ("go", "went"),
        ("eat", "ate"),
        ("sing", "sang"),
    ),
    "animal and young": (
        ("dog", "puppy"),
        ("cat", "kitten"),
        ("cow", "calf"),
        ("sheep", "lamb"),
        ("hen", "chick"),
    ),
    "maker and work": (
        ("baker", "bread"),
        ("painter", "picture"),
        ("writer", "book"),
        ("tailor", "coat"),
        ("cook", "soup"),
    ),
    "part and whole": (
        ("finger", "hand"),
        ("leaf", "tree"),
        ("wheel", "car"),
        ("page", "book"),
        ("roof", "house"),
    ),
    "number and next": (
        ("one", "two"),
        ("three", "four"),
        ("five", "six"),
        ("seven", "eight"),
        ("nine", "ten"),
    ),
}


def phrases() -> list[tuple[str, str]]:
    """(relation, "a is to b") of all forty."""
    return [(name, f"{a} is to {b}") for name, pairs in RELATIONS.items() for a, b in pairs]
