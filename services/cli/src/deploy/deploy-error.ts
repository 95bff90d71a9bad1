/** Why a host was not deployed, and what mends it. */
export class DeployError extends Error {
  override readonly name = 'DeployError';
  constructor(message: string, readonly remedy: string, options?: ErrorOptions) {
    super(message, options);
  }
}
