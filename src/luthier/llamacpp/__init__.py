"""llama.cpp's converter, quantiser and runtime, each in a child process."""
