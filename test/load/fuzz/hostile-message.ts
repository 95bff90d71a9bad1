/** Messages no honest peer sends: valid ones, damaged in the ways that parsers and checks have to bear. */
import { ConnectRequest, DeviceInfo, Reported, RouterWindow, TaskUpdate, type TelemetryFrame } from '@moefleet/proto';
import type { Recording } from '../hollow-fleet/recording';
import type { Random } from './random';

type Body = NonNullable<ConnectRequest['body']>;

const encode = (body: Body): Buffer => Buffer.from(ConnectRequest.encode({ body }).finish());

export function helloOf(deviceId: string, installId: string, recording: Recording): Buffer {
  return encode({ $case: 'hello', value: { deviceId, installId, bootId: 'boot', protocolVersion: 1, info: recording.info, reported: Reported.fromPartial({}) } });
}

/** One of each kind an agent sends. */
export function validMessages(recording: Recording): Buffer[] {
  const frame: TelemetryFrame = recording.frames[0]!;
  return [
    helloOf('fuzz-0', 'install-fuzz-0', recording),
    encode({ $case: 'info', value: DeviceInfo.fromPartial({ ...recording.info, labels: { class: 'x', region: 'eu' } }) }),
    encode({ $case: 'reported', value: Reported.fromPartial({ state: 2, generation: 3n, appliedGeneration: 3n, appliedHash: Buffer.alloc(32, 1), effective: { lambda: 0.5, capacities: [4, 4] } }) }),
    encode({ $case: 'telemetry', value: frame }),
    encode({ $case: 'routerWindow', value: RouterWindow.fromPartial({ windowId: 'w', modelHash: 'ab'.repeat(32), tokens: 1, layers: 6, experts: 32, lambda: 0.5, data: Buffer.alloc(240, 3) }) }),
    encode({ $case: 'windowChunk', value: { windowId: 'w', offset: 0, totalBytes: 240, data: Buffer.alloc(240, 3) } }),
    encode({ $case: 'taskUpdate', value: TaskUpdate.fromPartial({ taskId: 'task', state: { $case: 'progress', value: { fraction: 0.5, what: 'x' } } }) }),
  ];
}

/** Numbers that parsers and checks trip over, as varints and as doubles. */
const EDGES = [
  Buffer.from('ffffffffffffffffff01', 'hex'), Buffer.from('80808080808080808001', 'hex'), Buffer.from('ffffffffffffffffffffff7f', 'hex'), Buffer.from([0]), Buffer.from('ffffffff0f', 'hex'),
  Buffer.from('000000000000f87f', 'hex'), Buffer.from('000000000000f0ff', 'hex'), Buffer.from('0000000000000080', 'hex'),
];

export function hostileMessage(valid: readonly Buffer[], random: Random): Buffer {
  let bytes: Buffer = Buffer.from(random.of(valid));
  for (let times = 1 + random.below(4); times > 0; times -= 1) bytes = damage(bytes, valid, random);
  return bytes;
}

function damage(bytes: Buffer, valid: readonly Buffer[], random: Random): Buffer {
  const at = random.below(bytes.length + 1);
  switch (random.below(9)) {
    case 0: if (at < bytes.length) bytes[at]! ^= 1 << random.below(8); return bytes;
    case 1: if (at < bytes.length) bytes[at] = random.below(256); return bytes;
    case 2: return bytes.subarray(0, at);
    case 3: return Buffer.concat([bytes.subarray(0, at), random.bytes(random.below(16)), bytes.subarray(at)]);
    case 4: return Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.min(bytes.length, at + 1 + random.below(8)))]);
    case 5: { const other = random.of(valid); return Buffer.concat([bytes.subarray(0, at), other.subarray(random.below(other.length))]); }
    case 6: { const edge = random.of(EDGES); return Buffer.concat([bytes.subarray(0, at), edge, bytes.subarray(Math.min(bytes.length, at + edge.length))]); }
    // A field repeated many times.
    case 7: { const piece = bytes.subarray(at, at + 1 + random.below(64)); return Buffer.concat([bytes, ...Array<Buffer>(random.below(64)).fill(piece)]); }
    // Groups nested deep: start-group tags of field 1.
    default: return Buffer.concat([bytes.subarray(0, at), Buffer.alloc(1 + random.below(2000), 0x0b), bytes.subarray(at)]);
  }
}
