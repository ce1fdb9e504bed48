#!/usr/bin/env python3
"""Records torchless in a terminal and draws it as an SVG that plays: the real output, at its real times.

    cargo build --release && python3 docs/make_recording.py target/release/torchless docs/terminal.svg

Needs the default model (torchless pull) and Unix. Where animations are not played, the picture shows the end.
"""

import os
import pty
import subprocess
import sys
import time
from html import escape

# Commands, and what is said to them.
COMMANDS = [
    ('torchless generate "The capital of France is" -n 48 --temp 0', []),
    ("torchless chat", ["Name three primary colours.", "Which of them has the sky?", "/stats"]),
]
PROMPT = b">>> "
COLUMNS = 84
FONT, ADVANCE, LINE, MARGIN, BAR = 13, 7.83, 18, 16, 28
TYPING, PAUSE = 0.03, 0.8  # seconds a key, and before and after a command
INK, DIM, GROUND = "#e6e6e6", "#8ec07c", "#1d2021"


def run(command, said, environment):
    """Pairs of (seconds since the start, text), as a terminal gets them."""
    master, slave = pty.openpty()
    start = time.monotonic()
    child = subprocess.Popen(command, shell=True, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    pieces, said = [], said + [None]
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        pieces.append((time.monotonic() - start, piece))
        if piece.endswith(PROMPT):
            time.sleep(PAUSE)
            answer = said.pop(0)
            # The terminal echoes what is typed; Ctrl-D ends.
            for key in "\x04" if answer is None else answer + "\n":
                os.write(master, key.encode())
                time.sleep(TYPING)
    os.close(master)
    if child.wait() != 0:
        sys.exit(f"{command}: exit code {child.returncode}")
    return pieces


class Screen:
    """Spans of text: where they are, when they appear, and in which colour."""

    def __init__(self):
        self.row, self.column, self.spans = 0, 0, []

    def write(self, when, text, colour):
        for line_number, line in enumerate(text.replace("\r", "").split("\n")):
            if line_number:
                self.row, self.column = self.row + 1, 0
            while line:
                if self.column == COLUMNS:
                    self.row, self.column = self.row + 1, 0
                part, line = line[: COLUMNS - self.column], line[COLUMNS - self.column :]
                self.spans.append((self.row, self.column, when, part, colour))
                self.column += len(part)


def record(program):
    """The screen after all commands."""
    folder = os.path.dirname(os.path.abspath(program))
    # A dumb terminal gets no progress bars.
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "TERM": "dumb"}
    screen, now = Screen(), 0.5
    for command, said in COMMANDS:
        screen.write(now, "$ ", DIM)
        for key in command:
            screen.write(now, key, INK)
            now += TYPING
        now += PAUSE
        screen.write(now, "\n", INK)
        decoded = b""
        pieces = run(command, said, environment)
        for after, piece in pieces:
            decoded += piece
            try:
                text = decoded.decode()
            except UnicodeDecodeError:  # in the middle of a character
                continue
            decoded = b""
            screen.write(now + after, text, INK)
        now += pieces[-1][0] + PAUSE
    return screen


def svg(screen):
    """The picture. Text that appears at one time in one row is one element."""
    merged = []
    for row, column, when, text, colour in screen.spans:
        last = merged[-1] if merged else None
        if last and last[0] == row and last[4] == colour and when - last[2] < 0.02:
            last[3] += text
        else:
            merged.append([row, column, when, text, colour])
    width = round(2 * MARGIN + COLUMNS * ADVANCE)
    height = BAR + 2 * MARGIN + (screen.row + 1) * LINE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<style>text{font:%dpx 'DejaVu Sans Mono',Menlo,Consolas,monospace;white-space:pre;"
        "animation:a 1ms backwards}@keyframes a{from{visibility:hidden}to{visibility:hidden}}</style>" % FONT,
        f'<rect width="{width}" height="{height}" rx="8" fill="{GROUND}"/>',
    ]
    for i, colour in enumerate(["#fb4934", "#fabd2f", "#b8bb26"]):
        lines.append(f'<circle cx="{20 + 18 * i}" cy="16" r="5.5" fill="{colour}"/>')
    for row, column, when, text, colour in merged:
        x, y = MARGIN + column * ADVANCE, BAR + MARGIN + row * LINE
        # The fonts' letters differ in width: each piece is stretched to the columns it takes.
        lines.append(
            f'<text x="{x:.1f}" y="{y}" fill="{colour}" textLength="{len(text) * ADVANCE:.1f}" '
            f'style="animation-delay:{when:.2f}s" xml:space="preserve">{escape(text)}</text>'
        )
    return "\n".join(lines + ["</svg>\n"])


def main():
    program, picture = sys.argv[1:]
    with open(picture, "w", encoding="utf-8") as file:
        file.write(svg(record(program)))


if __name__ == "__main__":
    main()
