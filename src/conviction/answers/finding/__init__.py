"""Finding answers in text: the final part of a trace, and the places where answers stand."""
