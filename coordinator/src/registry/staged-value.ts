/**
 * The value of a rollout that is under way. It lies beside the pins and counts, in its own layer, for devices that carry
 * the rollout's mark. Taking it away voids every mark at once, so a coordinator that still acts for a rollout which
 * has ended can bring nobody back to it.
 */
import { Proposal } from '@moefleet/proto';
import { reasonOf } from '../errors';
import { decodePin, PIN_FIELDS, type PinByField, type PinField, type PinPlace } from './pin';

export type StagedLayer = PinPlace | { t: 'learner' };

export interface StagedValue {
  readonly rolloutId: string;
  readonly field: PinField;
  readonly layer: StagedLayer;
  /** null: the layer is cleared, or the learner's, whose values lie in the marks */
  readonly pin: PinByField[PinField] | null;
}

/** A device's marks: rollout id → nothing, or the learner's value for it. */
export type StagedMarks = ReadonlyMap<string, Proposal | null>;

const VALUE = 'rollout|';
const MARK = 'staged|';

export function stagedValueField(rolloutId: string): string { return VALUE + rolloutId; }
export function stagedMarkField(rolloutId: string): string { return MARK + rolloutId; }

export function encodeStagedValue({ field, layer, pin }: StagedValue): string {
  return JSON.stringify({ field, layer, pin });
}

/** `raw`: the hash of shared pins. The oldest rollout first; what cannot be decoded is left out and named in `damaged`. */
export function decodeStagedValues(raw: Readonly<Record<string, Buffer>>, damaged: string[]): StagedValue[] {
  // Ids begin with the time: of two whose marks a device carries for a moment, the newer one counts.
  return fieldsOf(raw, VALUE).sort(([a], [b]) => (a < b ? -1 : 1)).flatMap(([rolloutId, bytes]) => {
    try {
      return [decodeStagedValue(rolloutId, bytes.toString('utf8'))];
    } catch (error) {
      damaged.push(`rollout ${rolloutId}: ${reasonOf(error)}`);
      return [];
    }
  });
}

/** `raw`: the hash of a device's pins. */
export function decodeMarks(raw: Readonly<Record<string, Buffer>>, damaged: string[]): StagedMarks {
  const marks = new Map<string, Proposal | null>();
  for (const [rolloutId, bytes] of fieldsOf(raw, MARK)) {
    try {
      marks.set(rolloutId, bytes.length > 0 ? Proposal.decode(bytes) : null);
    } catch (error) {
      damaged.push(`mark of rollout ${rolloutId}: ${reasonOf(error)}`);
    }
  }
  return marks;
}

export function encodeMark(proposal: Proposal | null): Buffer {
  return proposal ? Buffer.from(Proposal.encode(proposal).finish()) : Buffer.alloc(0);
}

function decodeStagedValue(rolloutId: string, json: string): StagedValue {
  const value = JSON.parse(json) as { field?: unknown; layer?: { t?: unknown; selector?: unknown; deviceId?: unknown } | null; pin?: unknown } | null;
  const field = PIN_FIELDS.find((name) => name === value?.field);
  const layer = value?.layer;
  const known = layer?.t === 'fleet' || layer?.t === 'learner' || (layer?.t === 'group' && typeof layer.selector === 'string')
    || (layer?.t === 'device' && typeof layer.deviceId === 'string');
  if (!field || !known) throw new TypeError('its field or layer is unknown');
  return { rolloutId, field, layer: layer as StagedLayer, pin: value?.pin ? decodePin(field, JSON.stringify(value.pin)) : null };
}

function fieldsOf(raw: Readonly<Record<string, Buffer>>, first: string): [string, Buffer][] {
  return Object.entries(raw).filter(([name]) => name.startsWith(first)).map(([name, bytes]) => [name.slice(first.length), bytes]);
}
