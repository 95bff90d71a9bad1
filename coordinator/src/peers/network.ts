/** Addresses with prefix length, as devices tell them of their interfaces. What is none is null. Pure. */
import { isIPv4, isIPv6 } from 'node:net';

export interface Network {
  readonly address: string;
  readonly bits: 32 | 128;
  readonly value: bigint;
  readonly prefix: number;
}

/** `192.168.1.7/24`, `fd00::7/64`. Link-local addresses of IPv6 name an interface of one machine alone, and are none here. */
export function parseNetwork(text: string): Network | null {
  const match = /^([0-9A-Fa-f:.]{2,45})\/(\d{1,3})$/.exec(text);
  const found = match && parseAddress(match[1]!);
  const prefix = Number(match?.[2]);
  // Without a prefix everybody would be beside everybody.
  return found && prefix >= 1 && prefix <= found.bits ? { ...found, prefix } : null;
}

export function parseAddress(text: string): Omit<Network, 'prefix'> | null {
  const address = text.replace(/^::ffff:(?=\d+\.)/i, '');
  if (isIPv4(address)) return { address, bits: 32, value: address.split('.').reduce((sum, part) => sum * 256n + BigInt(part), 0n) };
  if (!isIPv6(address) || address.includes('.') || /^fe[89ab]/i.test(address)) return null;
  const [head = '', tail] = address.split('::');
  const groups = (part: string) => (part === '' ? [] : part.split(':'));
  const zeros = tail === undefined ? 0 : 8 - groups(head).length - groups(tail).length;
  const all = [...groups(head), ...new Array<string>(zeros).fill('0'), ...groups(tail ?? '')];
  return { address, bits: 128, value: all.reduce((sum, group) => sum * 65_536n + BigInt(`0x${group}`), 0n) };
}

/** Each takes the other for a neighbour. */
export function isBeside(a: Network, b: Network): boolean {
  if (a.bits !== b.bits) return false;
  const host = BigInt(a.bits - Math.max(a.prefix, b.prefix));
  return a.value >> host === b.value >> host;
}

export function isLoopbackAddress({ bits, value }: Omit<Network, 'prefix'>): boolean {
  return bits === 32 ? value >> 24n === 127n : value === 1n;
}

/** The network that an address lies in, for people and keys. */
export function networkText({ bits, value, prefix }: Network): string {
  return `${bits === 32 ? 'v4' : 'v6'}:${((value >> BigInt(bits - prefix)) << BigInt(bits - prefix)).toString(16)}/${prefix}`;
}
