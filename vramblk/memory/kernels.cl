// Kernels of one device. Given at build time:
//   TABLE  requests in one launch's table
//   LANES  work-items per request or block: 1 on a CPU, where one thread copies best by itself
//
// The two dimensions of a launch of gather, scatter and exchange are lanes (of one group or several) and
// requests; of the others, lanes and groups, each of which takes blocks of 4096 bytes in turn.
// A table's columns come from a worker's memory, and a worker may be corrupt: a request that leaves its
// arena, the export or the staging buffer is skipped.
// Words are little-endian on the device, as the host's.

#define LANE get_local_id(0)
#define REQUEST get_group_id(1)
#define PART get_global_id(0)
#define PARTS get_global_size(0)
#define GROUP get_group_id(1)
#define GROUPS get_num_groups(1)

#define BLOCK16 256

typedef struct {
    uint off16[TABLE];
    uint pos4[TABLE];
    uint shape[TABLE];
    uint writes; // how many of the first requests are writes; of exchange alone
} table_t;

#define ARENAS                                                                                     \
    __global uint4 *a0, __global uint4 *a1, __global uint4 *a2, __global uint4 *a3,                \
        __global uint4 *a4, __global uint4 *a5, __global uint4 *a6, __global uint4 *a7,            \
        __global uint4 *a8, __global uint4 *a9, __global uint4 *a10, __global uint4 *a11,          \
        __global uint4 *a12, __global uint4 *a13, __global uint4 *a14, __global uint4 *a15

// A switch, not an array: all work-items of a group agree, and an array would live in memory.
#define PICK(arena, number)                                                                        \
    switch (number) {                                                                              \
    case 1: arena = a1; break;                                                                     \
    case 2: arena = a2; break;                                                                     \
    case 3: arena = a3; break;                                                                     \
    case 4: arena = a4; break;                                                                     \
    case 5: arena = a5; break;                                                                     \
    case 6: arena = a6; break;                                                                     \
    case 7: arena = a7; break;                                                                     \
    case 8: arena = a8; break;                                                                     \
    case 9: arena = a9; break;                                                                     \
    case 10: arena = a10; break;                                                                   \
    case 11: arena = a11; break;                                                                   \
    case 12: arena = a12; break;                                                                   \
    case 13: arena = a13; break;                                                                   \
    case 14: arena = a14; break;                                                                   \
    case 15: arena = a15; break;                                                                   \
    default: arena = a0;                                                                           \
    }

// Whether [off16, off16 + length16) lies within arena `number`, of which the last may be smaller.
static inline int in_arena(uint number, uint off16, uint length16, ulong arena_bytes,
                           ulong size_bytes) {
    const ulong first = number * arena_bytes, end = ((ulong)off16 + length16) * 16;
    return first < size_bytes && end <= arena_bytes && end <= size_bytes - first;
}

// A request's bytes from an arena to a place in the staging buffer, which lies at any multiple of 4 bytes.
static inline void to_staging(__global uint *staging, uint pos4, const __global uint4 *from,
                              uint length16) {
    __global uint *to = staging + pos4;
    if ((pos4 & 3) == 0) {
        __global uint4 *to16 = (__global uint4 *)to;
        for (uint i = PART; i < length16; i += PARTS) to16[i] = from[i];
    } else {
        const __global uint *from4 = (const __global uint *)from;
        for (uint i = PART; i < length16 * 4; i += PARTS) to[i] = from4[i];
    }
}

// And the other way.
static inline void to_arena(__global uint4 *to, const __global uint *staging, uint pos4,
                            uint length16) {
    const __global uint *from = staging + pos4;
    if ((pos4 & 3) == 0) {
        const __global uint4 *from16 = (const __global uint4 *)from;
        for (uint i = PART; i < length16; i += PARTS) to[i] = from16[i];
    } else {
        __global uint *to4 = (__global uint *)to;
        for (uint i = PART; i < length16 * 4; i += PARTS) to4[i] = from[i];
    }
}

// Reads: the data of each request go to its pos4 in the staging buffer; what lies between stays as it is.
__kernel void gather(ARENAS, __global uint *staging, ulong arena_bytes, ulong size_bytes,
                     ulong staging4, const table_t table) {
    const uint request = REQUEST;
    const uint shape = table.shape[request];
    const uint off16 = table.off16[request];
    const uint pos4 = table.pos4[request];
    const uint length16 = shape & 0xffff;
    const uint number = shape >> 16;
    if (!in_arena(number, off16, length16, arena_bytes, size_bytes)) return;
    if ((ulong)pos4 + length16 * 4 > staging4) return;
    const __global uint4 *arena;
    PICK(arena, number)
    to_staging(staging, pos4, arena + off16, length16);
}

// Writes: the payload of each request lies in the staging buffer at its pos4.
__kernel void scatter(ARENAS, const __global uint *staging, ulong arena_bytes, ulong size_bytes,
                      ulong staging4, const table_t table) {
    const uint request = REQUEST;
    const uint shape = table.shape[request];
    const uint off16 = table.off16[request];
    const uint pos4 = table.pos4[request];
    const uint length16 = shape & 0xffff;
    const uint number = shape >> 16;
    if (!in_arena(number, off16, length16, arena_bytes, size_bytes)) return;
    if ((ulong)pos4 + length16 * 4 > staging4) return;
    __global uint4 *arena;
    PICK(arena, number)
    to_arena(arena + off16, staging, pos4, length16);
}

// Writes and reads, in no order: none overlaps another. The first table.writes requests are writes.
__kernel void exchange(ARENAS, __global uint *staging, ulong arena_bytes, ulong size_bytes,
                       ulong staging4, const table_t table) {
    const uint request = REQUEST;
    const uint shape = table.shape[request];
    const uint off16 = table.off16[request];
    const uint pos4 = table.pos4[request];
    const int writes = request < table.writes;
    const uint length16 = shape & 0xffff;
    const uint number = shape >> 16;
    const int sane = in_arena(number, off16, length16, arena_bytes, size_bytes);
    if (!sane || (ulong)pos4 + length16 * 4 > staging4) return;
    __global uint4 *arena;
    PICK(arena, number)
    if (writes)
        to_arena(arena + off16, staging, pos4, length16);
    else
        to_staging(staging, pos4, arena + off16, length16);
}

// Zero the bytes [start, start + length) of an arena, whatever their alignment.
__kernel void zero(__global uchar *arena, ulong start, ulong length) {
    ulong head = (16 - (start & 15)) & 15;
    if (head > length) head = length;
    const ulong middle16 = (length - head) / 16;
    const ulong tail = start + head + middle16 * 16;
    if (GROUP == 0) {
        for (ulong i = start + LANE; i < start + head; i += LANES) arena[i] = 0;
        for (ulong i = tail + LANE; i < start + length; i += LANES) arena[i] = 0;
    }
    __global uint4 *to = (__global uint4 *)(arena + start + head);
    for (ulong block = GROUP; block * BLOCK16 < middle16; block += GROUPS) {
        const ulong first = block * BLOCK16;
        const uint count = middle16 - first < BLOCK16 ? (uint)(middle16 - first) : BLOCK16;
        for (uint i = LANE; i < count; i += LANES) to[first + i] = (uint4)(0);
    }
}

static inline uint mixed(uint word) {
    word = (word ^ word >> 17) * 0xed5ad4bb;
    word = (word ^ word >> 11) * 0xac4c1b51;
    word = (word ^ word >> 15) * 0x31848bab;
    return word ^ word >> 14;
}

// The word of a pattern at a word index of the export; patterns.py computes the same.
static inline uint expected(uint pattern, ulong index, uint seed) {
    const uint low = (uint)index, high = (uint)(index >> 32);
    switch (pattern) {
    case 1: return low ^ high << 16 ^ seed;
    case 2: return mixed(low ^ mixed(high + seed));
    case 3: return 1u << (low + seed & 31);
    case 4: return ~(1u << (low + seed & 31));
    default: return 0;
    }
}

static inline uint4 expected4(uint pattern, ulong index, uint seed) {
    return (uint4)(expected(pattern, index, seed), expected(pattern, index + 1, seed),
                   expected(pattern, index + 2, seed), expected(pattern, index + 3, seed));
}

// Write a pattern over blocks of 4096 bytes; index is the export's word index of the first.
__kernel void fill(__global uint4 *arena, ulong first16, ulong blocks, ulong index, uint pattern,
                   uint seed) {
    for (ulong block = GROUP; block < blocks; block += GROUPS)
        for (uint i = LANE; i < BLOCK16; i += LANES) {
            const ulong at = block * BLOCK16 + i;
            arena[first16 + at] = expected4(pattern, index + at * 4, seed);
        }
}

// Compare blocks with a pattern: found[0] becomes 1 if any differs, and found[1 + block] of each.
__kernel void verify(const __global uint4 *arena, ulong first16, ulong blocks, ulong index,
                     uint pattern, uint seed, __global uint *found) {
    for (ulong block = GROUP; block < blocks; block += GROUPS)
        for (uint i = LANE; i < BLOCK16; i += LANES) {
            const ulong at = block * BLOCK16 + i;
            if (any(arena[first16 + at] != expected4(pattern, index + at * 4, seed))) {
                found[0] = 1;
                found[1 + block] = 1;
            }
        }
}

// Checksums of blocks of 4096 bytes; checksums.py says what they catch. What a launch does with them:
#define SIGN 0  // keep the sums of all blocks that are touched
#define CHECK 1 // compare them with those kept
#define EDGES 2 // compare those of blocks that are touched only in part

// The sum of a block; of a group's work-items only lane 0 gets it. Not to be called under a condition,
// though all agree on it: PoCL 3.0 was seen to miscompile barriers there.
static inline uint block_sum(const __global uint4 *block, __local uint *parts) {
    uint sum = 0;
    for (uint i = LANE; i < BLOCK16; i += LANES) {
        const uint4 word = block[i];
        const uint4 index = (uint4)(0, 1, 2, 3) + 4 * i;
        const uint4 each = (word ^ word >> 15) * (index * 0x9e3779b9 >> 18 | 1);
        sum += each.x + each.y + each.z + each.w;
    }
#if LANES > 1
    barrier(CLK_LOCAL_MEM_FENCE); // lane 0 may still be reading what is left of the block before
    parts[LANE] = sum;
    for (uint width = LANES; width > 1;) {
        const uint upper = (width + 1) / 2;
        barrier(CLK_LOCAL_MEM_FENCE);
        if (LANE + upper < width) parts[LANE] += parts[LANE + upper];
        width = upper;
    }
    sum = parts[LANE];
#endif
    return sum;
}

// Block `number` of the export: keep its sum, or compare; found gets how many were bad, and the first that was counted.
static inline void tend(uint sum, __global uint *sums, ulong number, uint task,
                        __global uint *found) {
    if (LANE) return;
    if (task == SIGN) {
        sums[number] = sum;
    } else if (sums[number] != sum && atomic_inc(found) == 0) {
        found[1] = (uint)number; // of the first to count alone: no two write it
    }
}

// The blocks that a table's requests touch. Two requests that share one compute the same for it.
__kernel void checksum_runs(ARENAS, __global uint *sums, ulong arena_bytes, ulong size_bytes,
                            __global uint *found, const table_t table, uint task) {
    __local uint parts[LANES];
    const uint request = REQUEST;
    const uint shape = table.shape[request];
    const uint off16 = table.off16[request];
    const uint length16 = shape & 0xffff;
    const uint number = shape >> 16;
    const int sane = in_arena(number, off16, length16, arena_bytes, size_bytes);
    const ulong end = (ulong)off16 + length16;
    const uint first = off16 / BLOCK16;
    const uint blocks = sane && length16 ? (uint)((end + BLOCK16 - 1) / BLOCK16) - first : 0;
    const uint step = task == EDGES && blocks > 2 ? blocks - 1 : 1;
    const ulong before = number * arena_bytes / (BLOCK16 * 16) + first;
    const __global uint4 *arena;
    PICK(arena, number)
    for (uint block = 0; block < blocks; block += step) {
        const ulong at = (ulong)(first + block) * BLOCK16;
        const uint sum = block_sum(arena + at, parts);
        if (task != EDGES || at < off16 || at + BLOCK16 > end)
            tend(sum, sums, before + block, task, found);
    }
}

// Blocks of one arena from its block `first`; `before` is the export's number of the arena's first.
__kernel void checksum_blocks(const __global uint4 *arena, ulong first, ulong blocks, ulong before,
                              __global uint *sums, __global uint *found, uint task) {
    __local uint parts[LANES];
    for (ulong block = first + GROUP; block < first + blocks; block += GROUPS)
        tend(block_sum(arena + block * BLOCK16, parts), sums, before + block, task, found);
}
