/** The spec itself makes no sense; nothing of it is applied. */
export class SpecError extends Error {
  override readonly name = 'SpecError';
}
