"""GGUF, llama.cpp's file format: `reader` and `load` open one, `write` makes one."""
