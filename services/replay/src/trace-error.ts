/** A record that cannot be read, or cannot answer what is asked; the message names file, value and next step. */
export class TraceError extends Error {
  override readonly name = 'TraceError';
}
