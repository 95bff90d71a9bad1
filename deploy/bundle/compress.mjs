/** compress.mjs INPUT OUTPUT LEVEL: zstd in one piece, so that the output depends on nothing but the input. Run by a bundle's Node.js. */
import { readFileSync, writeFileSync } from 'node:fs';
import { constants, zstdCompressSync } from 'node:zlib';

const [input, output, level] = process.argv.slice(2);
writeFileSync(output, zstdCompressSync(readFileSync(input), {
  params: { [constants.ZSTD_c_compressionLevel]: Number(level), [constants.ZSTD_c_checksumFlag]: 1, [constants.ZSTD_c_nbWorkers]: 0 },
}));
