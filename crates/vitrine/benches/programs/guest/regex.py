# Python's own regular expressions over a text.
import re
import sys

with open(sys.argv[1], encoding="latin-1") as file:
    text = file.read(4_000_000)
for pattern in (
    r"\b(\w+)\s+\1\b",
    r"def\s+(\w+)\(([^)]*)\)",
    r"[A-Z][a-z]+(?:[A-Z][a-z]+)+",
    r"0x[0-9a-fA-F]+|\d+\.\d*",
):
    found = re.findall(pattern, text)
    print(pattern, len(found), found[:20])
print(len(re.sub(r"(?m)^\s*(#|//).*$", "", text)))
