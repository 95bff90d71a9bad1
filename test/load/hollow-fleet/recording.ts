/**
 * What a real agent said, and its replay by many. The figures of a frame are cumulative, so that each time the
 * recording begins again its last frame is added on top, and nothing ever falls.
 */
import { DeviceInfo, type LayerCounters, TelemetryFrame } from '@moefleet/proto';
import { readFileSync } from 'node:fs';

/** As `record-agent.mjs` writes it; messages in base64. */
interface RecordingFile { what: string; intervalMs: number; info: string; frames: string[] }

export interface Recording { info: DeviceInfo; frames: TelemetryFrame[] }

export function readRecording(path: string): Recording {
  const file = JSON.parse(readFileSync(path, 'utf8')) as RecordingFile;
  return {
    info: DeviceInfo.decode(Buffer.from(file.info, 'base64')),
    frames: file.frames.map((frame) => TelemetryFrame.decode(Buffer.from(frame, 'base64'))),
  };
}

/** One agent's way through the recording, from a place of its own. Counts from sequence 1, as at a boot. */
export class Replay {
  private round = 0;
  private sequence = 0n;

  constructor(private readonly recording: Recording, private at: number) {
    this.at %= recording.frames.length;
  }

  next(nowMs: number): TelemetryFrame {
    const { frames } = this.recording;
    const frame = addRounds(frames[this.at]!, frames[frames.length - 1]!, this.round);
    this.at += 1;
    if (this.at === frames.length) {
      this.at = 0;
      this.round += 1;
    }
    this.sequence += 1n;
    return { ...frame, sequence: this.sequence, timeMs: BigInt(nowMs) };
  }

  get sent(): bigint {
    return this.sequence;
  }
}

const COUNTERS = [
  'requests', 'requestsFailed', 'prefillTokens', 'decodeTokens', 'prefillNs', 'decodeNs', 'stallNs', 'flashBytes', 'flashReads', 'resizeEvictions',
] as const satisfies (keyof TelemetryFrame)[];
const LAYER_COUNTERS = ['hits', 'misses', 'swaps', 'prefillHits', 'prefillMisses', 'events'] as const satisfies (keyof LayerCounters)[];
const ACCOUNT = ['counted', 'exported', 'spooled', 'dropped', 'unsampled'] as const;

function addRounds(frame: TelemetryFrame, last: TelemetryFrame, round: number): TelemetryFrame {
  if (round === 0) return frame;
  const times = BigInt(round);
  const sum = { ...frame };
  for (const counter of COUNTERS) sum[counter] += times * last[counter];
  sum.readMicrosLog2 = frame.readMicrosLog2.map((count, at) => count + times * (last.readMicrosLog2[at] ?? 0n));
  sum.layers = frame.layers.map((layer, at) => {
    const end = last.layers[at];
    if (!end) return layer;
    const added = { ...layer, massLost: layer.massLost + round * end.massLost };
    for (const counter of LAYER_COUNTERS) added[counter] += times * end[counter];
    return added;
  });
  if (frame.misses && last.misses) {
    sum.misses = { ...frame.misses };
    for (const place of ACCOUNT) sum.misses[place] += times * last.misses[place];
  }
  return sum;
}
