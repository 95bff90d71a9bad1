/**
 * The last good specs on disk, so that an agent runs what it ran before it has reached the coordinator: `current` is
 * the one applied last, `proven` the last under which a token was decoded. Bytes are kept as received and carry their
 * hash; a file that does not match it is as good as none.
 */
import { createHash } from 'node:crypto';
import type { Logger } from '@moefleet/runtime';
import type { StateFolder } from './state-folder';

const FILE = 'spec.json';

/** A DeviceSpec as the coordinator sent it. */
export interface SpecRecord {
  generation: bigint;
  /** serialised DeviceSpec */
  bytes: Buffer;
  origin: string;
}

export interface StoredSpecs { current: SpecRecord | null; proven: SpecRecord | null; }

/** SHA-256 of the bytes: the spec's identity between coordinator and agent. */
export function specHash(bytes: Uint8Array): Buffer {
  return createHash('sha256').update(bytes).digest();
}

export class SpecStore {
  constructor(private readonly folder: StateFolder, private readonly log: Logger) {}

  /** Never throws: what cannot be read is told in the log and left out. */
  load(): StoredSpecs {
    try {
      const text = this.folder.read(FILE);
      if (text === null) return { current: null, proven: null };
      const file = JSON.parse(text) as { current?: unknown; proven?: unknown };
      return { current: decodeRecord(file.current), proven: decodeRecord(file.proven) };
    } catch (error) {
      this.log.warn({ file: FILE, reason: (error as Error).message }, 'stored spec is damaged and ignored; the coordinator will send it again');
      return { current: null, proven: null };
    }
  }

  save(specs: StoredSpecs): void {
    this.folder.write(FILE, `${JSON.stringify({ current: encodeRecord(specs.current), proven: encodeRecord(specs.proven) }, null, 2)}\n`);
  }
}

function encodeRecord(record: SpecRecord | null): unknown {
  if (!record) return null;
  const { generation, bytes, origin } = record;
  return { generation: String(generation), sha256: specHash(bytes).toString('hex'), spec: bytes.toString('base64'), origin };
}

function decodeRecord(value: unknown): SpecRecord | null {
  if (value === null || value === undefined) return null;
  const { generation, sha256, spec, origin } = value as Record<string, unknown>;
  if (typeof generation !== 'string' || !/^\d{1,20}$/.test(generation) || typeof spec !== 'string') throw new Error('a field is missing');
  const bytes = Buffer.from(spec, 'base64');
  if (specHash(bytes).toString('hex') !== sha256) throw new Error(`the spec of generation ${generation} does not match its hash`);
  return { generation: BigInt(generation), bytes, origin: typeof origin === 'string' ? origin : '' };
}
