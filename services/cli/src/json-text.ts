/**
 * Messages as JSON for people's scripts: names as in the protocol, every field present, 64-bit integers as numbers
 * while they are exact (else as strings), bytes as hex, absent as null.
 */
export type JsonValue = null | boolean | number | string | JsonValue[] | { [key: string]: JsonValue };

export function jsonText(value: unknown): string {
  return `${JSON.stringify(toJson(value), null, 2)}\n`;
}

export function toJson(value: unknown): JsonValue {
  switch (typeof value) {
    case 'bigint': return toNumber(value);
    case 'number': return Number.isFinite(value) ? value : null;
    case 'string':
    case 'boolean': return value;
    case 'object': break;
    default: return null;
  }
  if (value === null) return null;
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex');
  if (Array.isArray(value)) return value.map(toJson);
  if (ArrayBuffer.isView(value)) return Array.from(value as unknown as ArrayLike<number>, toJson);
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, toJson(item)]));
}

/** `LAYER_FLEET_PIN` of an enum with the prefix `LAYER_` is `FLEET_PIN`. */
export function enumName(names: Readonly<Record<number, string>>, prefix: string, value: number): string {
  return (names[value] ?? 'UNRECOGNIZED').replace(prefix, '');
}

function toNumber(value: bigint): number | string {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value.toString();
}
