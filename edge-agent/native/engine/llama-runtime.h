// The process-wide part of llama.cpp: its CPU backends, found beside the library itself, and its log, which is silent
// save that the last error lines are kept to be put into error messages.
#pragma once

#include "status.h"

// Loads the backends once per process. INTERNAL where there is none for this machine.
engine_status llama_runtime_start();

// Release and CPU backend, e.g. "v0.5.0 haswell".
std::string llama_runtime_version();

// Error lines since the last call, joined; empty where there were none.
std::string llama_runtime_errors();

// What was freed goes back to the system, where the C library keeps it for the next who asks: beside a cache that fills the memory
// that is want of memory.
void llama_runtime_give_back();

// Physical cores that this process may run on, minus one for everything else on the device; at least one.
int default_threads();
