/** Checks of single values of a request; each throws InvalidRequestError, which names the field, the value and what would do. */
import { InvalidRequestError } from '../errors';

/** No model has that many experts in a layer. */
export const MOST_EXPERTS = 65_535;
/** 2^53: sizes are exact everywhere below it. */
const MOST_BYTES = BigInt(Number.MAX_SAFE_INTEGER);

export function share(field: string, value: number): number {
  if (!(value >= 0 && value <= 1)) throw new InvalidRequestError(field, value, 'a number from 0 to 1');
  return value;
}

export function finite(field: string, value: number): void {
  if (!Number.isFinite(value)) throw new InvalidRequestError(field, value, 'a finite number');
}

export function within(field: string, value: number, min: number, max: number): number {
  if (!(Number.isInteger(value) && value >= min && value <= max)) throw new InvalidRequestError(field, value, `an integer from ${min} to ${max}`);
  return value;
}

export function bytes(field: string, value: bigint, min: bigint): number {
  if (value < min || value > MOST_BYTES) throw new InvalidRequestError(field, value, `a number of bytes from ${min} to ${MOST_BYTES}`);
  return Number(value);
}
