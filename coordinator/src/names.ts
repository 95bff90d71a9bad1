/** The syntax of identifiers that come from outside. */
import { isLabelKey, isLabelValue, type Labels } from '@moefleet/runtime';
import { InvalidRequestError } from './errors';

const ID = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
/** What agents of earlier releases may report: slashes anywhere. No selector can name those beyond Kubernetes' form. */
const EARLIER_LABEL_KEY = /^[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/;
/** Hex of a SHA-256 or of any other digest of up to 64 bytes. */
const DIGEST = /^[0-9a-f]{8,128}$/;
const SHA256 = /^[0-9a-f]{64}$/;
const MAX_LABELS = 64;

export function isId(value: string): boolean {
  return ID.test(value);
}

/** Device, installation, boot and task ids. */
export function checkId(field: string, value: string): string {
  if (!isId(value)) throw new InvalidRequestError(field, value, 'an id (letters, digits, ".", "_" and "-", at most 63, a letter or digit first)');
  return value;
}

/** As Kubernetes allows them. */
export function checkLabels(field: string, labels: Labels, isKey = isLabelKey): Labels {
  const entries = Object.entries(labels);
  if (entries.length > MAX_LABELS) throw new InvalidRequestError(field, entries.length, `a number of labels up to ${MAX_LABELS}`);
  for (const [key, value] of entries) {
    if (!isKey(key)) throw new InvalidRequestError(field, key, 'a label key such as class or site/room');
    if (!isLabelValue(value)) throw new InvalidRequestError(`${field}.${key}`, value, 'a label value such as jetson-orin');
  }
  return labels;
}

export function checkReportedLabels(field: string, labels: Labels): Labels {
  return checkLabels(field, labels, (key) => isLabelKey(key) || EARLIER_LABEL_KEY.test(key));
}

/** In hexadecimal, of lower case. */
export function isSha256(value: unknown): value is string {
  return typeof value === 'string' && SHA256.test(value);
}

export function checkSha256(field: string, value: string): string {
  if (!isSha256(value)) throw new InvalidRequestError(field, value, 'a SHA-256 of 64 hexadecimal digits');
  return value;
}

export function checkDigest(field: string, value: string): string {
  if (!DIGEST.test(value)) throw new InvalidRequestError(field, value, 'a digest in lower-case hex');
  return value;
}
