//! What a generation needs beside the model: scratch memory, the KV cache, threads, sampling.
