/**
 * Where a packed model is cut into chunks, so that another version of it shares as many as can be. Cuts follow the file's
 * structure: its header stands alone, and so does each expert's part of a tensor, each tensor; what is small is joined with
 * its neighbours, what is large is cut at fixed distances from its own beginning. So a chunk changes only where what is in
 * it has changed, and a longer header, which moves everything, moves no cut. Cuts by content (FastCDC, 128 KiB to 2 MiB, 512 KiB
 * on average) find such places again too, but some way behind them on either side: with one of 32 experts changed in each
 * layer they send 4.2 times as much as has changed where an expert's part of a tensor has 208 KiB, 2.7 times where it has
 * 864 KiB, and these send 1.0 times; with 26 KiB, 22 against 7.6 times. Pure.
 */
import type { ModelInfo } from '@moefleet/edge-agent/engine';

export interface ChunkPlace { readonly offset: number; readonly bytes: number }

const KIB = 1024;
/** Small tensors are joined with those after them up to it. */
const LEAST = 128 * KIB;
/** Neighbours of a kind are joined up to it. */
const JOINED = 256 * KIB;
/** As large as a chunk may be; an expert's part up to this is one. */
const MOST = 2048 * KIB;
const PIECE = 1024 * KIB;
const HEADER = '';
const EXPERTS = /^blk\.(\d+)\.ffn_(?:gate|up|down|gate_up)_exps\.weight$/;

/** What is cut nowhere inside, unless it is too large; `kind`: a tensor's name; `alone`: what is of it is joined with nothing else. */
interface Unit { readonly kind: string; readonly bytes: number; readonly alone: boolean }

/** In file order, without gaps. `info`: of a model in one file. */
export function chunkPlan(info: Pick<ModelInfo, 'fileBytes' | 'tensors' | 'moeLayers' | 'experts'>): ChunkPlace[] {
  const chunks: ChunkPlace[] = [];
  let offset = 0;
  let joined = 0;
  let before: Pick<Unit, 'kind' | 'alone'> = { kind: HEADER, alone: true };
  const cut = (bytes: number) => {
    if (bytes > 0) chunks.push({ offset, bytes });
    offset += bytes;
  };
  const close = () => {
    cut(joined);
    joined = 0;
  };
  for (const unit of unitsOf(info)) {
    const another = unit.kind !== before.kind && (joined >= LEAST || before.alone || unit.alone);
    if (another || joined + unit.bytes > JOINED) close();
    before = unit;
    joined += unit.bytes;
    // The last piece takes what is left, up to half a piece more.
    while (unit.bytes > MOST && joined >= PIECE * 3 / 2) {
      cut(PIECE);
      joined -= PIECE;
    }
  }
  close();
  return chunks;
}

/** The space after a tensor, up to the next, is its own. */
function* unitsOf({ fileBytes, tensors, moeLayers, experts }: Parameters<typeof chunkPlan>[0]): Generator<Unit> {
  const inOrder = [...tensors].filter(({ bytes }) => bytes > 0).sort((a, b) => a.offset - b.offset);
  yield { kind: HEADER, bytes: inOrder[0]?.offset ?? fileBytes, alone: true };
  for (const [at, { name, offset, bytes }] of inOrder.entries()) {
    const whole = (inOrder[at + 1]?.offset ?? fileBytes) - offset;
    const each = bytes / experts;
    if (!moeLayers.includes(Number(EXPERTS.exec(name)?.[1] ?? -1)) || !Number.isInteger(each)) {
      yield { kind: name, bytes: whole, alone: false };
      continue;
    }
    for (let expert = 1; expert < experts; expert += 1) yield { kind: name, bytes: each, alone: true };
    yield { kind: name, bytes: whole - each * (experts - 1), alone: true };
  }
}
