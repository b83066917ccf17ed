#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

// While it lives, this thread takes what is below float's normal range for 0: it shows nowhere, and costs a hundred
// cycles each time.
struct FlushDenormals {
#if defined(__SSE2__)
    unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#endif
};
