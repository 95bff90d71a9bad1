/** The release all packages of the workspace share. */
export const VERSION = '0.1.0';
