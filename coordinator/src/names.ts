/** The syntax of identifiers that come from outside. */
import { InvalidRequestError } from './errors';

const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
const LABEL_KEY = /^[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/;
const LABEL_VALUE = /^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$/;
/** Hex of a SHA-256 or of any other digest of up to 64 bytes. */
const DIGEST = /^[0-9a-f]{8,128}$/;
const MAX_LABELS = 64;

export function isId(value: string): boolean {
  return ID.test(value);
}

/** Device, installation, boot and task ids. */
export function checkId(field: string, value: string): string {
  if (!isId(value)) throw new InvalidRequestError(field, value, 'an id (letters, digits, ".", "_" and "-", at most 63, a letter or digit first)');
  return value;
}

export function checkLabels(field: string, labels: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  const entries = Object.entries(labels);
  if (entries.length > MAX_LABELS) throw new InvalidRequestError(field, entries.length, `a number of labels up to ${MAX_LABELS}`);
  for (const [key, value] of entries) {
    if (!LABEL_KEY.test(key)) throw new InvalidRequestError(field, key, 'a label key such as class or site/room');
    if (!LABEL_VALUE.test(value)) throw new InvalidRequestError(`${field}.${key}`, value, 'a label value such as jetson-orin');
  }
  return labels;
}

export function checkDigest(field: string, value: string): string {
  if (!DIGEST.test(value)) throw new InvalidRequestError(field, value, 'a digest in lower-case hex');
  return value;
}

/** `a=b,c=d`, sorted by key: one text for one selector. */
export function selectorText(labels: Readonly<Record<string, string>>): string {
  return Object.keys(labels).sort().map((key) => `${key}=${labels[key]!}`).join(',');
}

/** The inverse of `selectorText`; null for a text that no selector has. */
export function parseSelector(text: string): Record<string, string> | null {
  const labels: Record<string, string> = {};
  for (const part of text.split(',')) {
    const at = part.indexOf('=');
    if (at < 1 || !LABEL_KEY.test(part.slice(0, at)) || !LABEL_VALUE.test(part.slice(at + 1))) return null;
    labels[part.slice(0, at)] = part.slice(at + 1);
  }
  return labels;
}

export function labelsMatch(labels: Readonly<Record<string, string>>, selector: Readonly<Record<string, string>>): boolean {
  return Object.entries(selector).every(([key, value]) => Object.hasOwn(labels, key) && labels[key] === value);
}
