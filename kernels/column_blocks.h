#pragma once

// How rows are cut into tasks, so that every thread has some.

#include "vector_math.h"

struct ColumnBlocks {
    int64_t columns, count = 1, width;

    // Few rows are cut into blocks of columns; of many, each is one block.
    ColumnBlocks(int64_t rows, int64_t columns, int64_t threads) : columns(columns), width(columns) {
        if (threads > 1 && rows < 4 * threads && rows && width) {
            count = (4 * threads + rows - 1) / rows;
            width = ((width + count - 1) / count + W - 1) / W * W;
            count = (columns + width - 1) / width;
        }
    }

    int64_t first(int64_t task) const { return task % count * width; }
    int64_t last(int64_t task) const { return first(task) + width < columns ? first(task) + width : columns; }
};
