"""Coverage-guided fuzzing of all that is read from outside: `make fuzz`, or `python -m tests.fuzz.run --help`.

Each target is a module with `checking`, which checks what must be true of any input, and `TOKENS`, strings that inputs
are made of. Some also have `mutated`, which changes an input so that it stays one of its kind. What was found stays in
`corpus/`, and `test_corpus.py` runs it in the quick suite, without the fuzzer.
"""
